"""What makes sound."""
