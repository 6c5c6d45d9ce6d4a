"""Files of a data set: pictures, which belong together, what masks mean, what is wrong."""
