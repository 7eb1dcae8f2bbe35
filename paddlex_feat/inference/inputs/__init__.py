"""What `predict` accepts, as one stream of images."""
