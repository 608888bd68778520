"""What a device's owner decides, and can read: the policy by which it answers, and the ledger of what it answered."""
