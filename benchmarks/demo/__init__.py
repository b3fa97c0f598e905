"""`make demo`: optimizes every model in models/, checks each, times it, and prints one table.

    __main__  the command: its first line before anything is loaded, models in processes of their own
    jobs      what the processes run
    model     one model: optimized, checked, timed
    table     what is printed, and two runs compared
"""
