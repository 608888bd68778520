"""What a device's owner does with the people on it: adds and corrects their events, shows, exports and forgets them."""
