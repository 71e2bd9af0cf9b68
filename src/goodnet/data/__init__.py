"""Images, how they are read and split, and faces that goodnet draws itself."""
