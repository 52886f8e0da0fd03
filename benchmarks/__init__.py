"""What judges the mixers."""
