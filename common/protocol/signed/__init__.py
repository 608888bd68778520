"""What a server signs of an ask, by which devices can prove that it told them different things."""
