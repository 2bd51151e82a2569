"""Selection, exploration and stop policies of alchemy."""
