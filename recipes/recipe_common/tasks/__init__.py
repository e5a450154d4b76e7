"""What recipes train for, and measure."""
