"""Whether work is linear in the length of a text: counted where Python does it, timed where one C call does it."""

import sys
import time


def steps(function, text):
    """Number of lines and calls of Python code that `function(text)` executes, generators included."""
    count = 0

    def trace(*_):
        nonlocal count
        count += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function(text)
    finally:
        sys.settrace(before)
    return count


def assert_linear_work(function, write, size=100):
    """Twice the text takes twice the steps, apart from what a start costs; `write(n)` repeats something n times."""
    function(write(size))  # caches of characters and the like
    first, second = steps(function, write(size)), steps(function, write(2 * size))
    assert second < 2.3 * first + 500, (write(2), first, second)


def assert_linear_time(function, unit, prefix="", suffix="", size=10_000):
    """Four times the text takes far less than 16 times as long, or 0.2 s: the least of three times counts."""

    def least(length):
        text = prefix + unit * (length // len(unit)) + suffix
        times = []
        while len(times) < 3 and (not times or times[-1] > 0.2):
            start = time.process_time()
            function(text)
            times.append(time.process_time() - start)
        return min(times)

    long = least(4 * size)
    assert long < 0.2 or long < 10 * least(size), (prefix, unit, suffix, long)
