"""Nets written for goodnet and for other runtimes: one file a format, one transaction for all of them."""

from goodnet.export.files import export_net
from goodnet.export.native import save_goodnet

__all__ = ["export_net", "save_goodnet"]
