"""Names into components: what is installed, what a configuration selects, and how it is called."""

from oumi_kernel.plugins.catalogue import Catalogue, Entry, scan
from oumi_kernel.plugins.families import FAMILIES, Family
from oumi_kernel.plugins.kernel import Kernel
from oumi_kernel.plugins.resolve import Resolution, Selected, resolve

__all__ = ["FAMILIES", "Catalogue", "Entry", "Family", "Kernel", "Resolution", "Selected", "resolve", "scan"]
