"""What is written into a data set's folder: lists, a table, and images that become files."""
