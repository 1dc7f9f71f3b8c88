"""User-space drivers on `outboard.client.Client`: what a guest's kernel does, as a library.

* `nvme`: an NVMe controller's registers and admin queue
"""
