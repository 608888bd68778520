"""What people go by: how alike the items of their histories are in a view, or in a block of its dimensions."""
