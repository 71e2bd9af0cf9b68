"""What decides class N at run time, one file each."""
