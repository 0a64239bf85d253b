"""What came out: predictions, accuracy, and pages that show them."""
