"""What a federation needs that goes on while people, devices and items come and go."""
