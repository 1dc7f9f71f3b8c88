"""User-space drivers on `outboard.client.Client`: what a guest's kernel does, as a library.

* `nvme`: an NVMe controller's registers and admin queue, one command at a time
* `nvme_measure`: the same controller kept busy, and measured
"""
