"""What programs call: settings, training, data and federations, as `tessera` offers them and the commands use them."""
