"""What the programs of this folder share.

* `cores`: which processor runs what, and how much of the time another machine took
* `servers`: `outboard nvme` and `outboard bench` as processes
* `ring`, `copying`, `fio`: what the machine can do at best
* `report`, `chart`: tables as text and Markdown, bars as SVG
"""
