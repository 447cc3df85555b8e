"""SAEs in the files of other libraries, both ways."""
