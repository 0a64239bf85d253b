"""Other libraries' weights: their names, and the files, folders and hubs that hold them."""
