"""Processes that train together: what one machine runs (`machine`), and one of its processes (`member`).

They are started by a step (`resources.launcher`), or on other machines by `ivr join`, and know of Dagster only how the
first of them reports.
"""
