# The numbers that rings keep, for all kernels. fastrl/replay/marks.py gives them to Python; a test compares the two.

cdef enum Mark:  # of a row
    ROW = 0  # ordinary
    TRUNCATED = 1
    TERMINATED = 2
    FINAL = 3  # a final observation; the action taken there was ignored

cdef enum Opens:  # of a ring; 0 and 1 say whether its newest row is a final observation
    UNKNOWN = 2  # it is one, but its frame was not given
