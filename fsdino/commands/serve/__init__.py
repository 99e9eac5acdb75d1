"""`fsdino serve`: a page in the browser on which supports are marked and images are segmented."""
