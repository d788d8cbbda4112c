__version__ = "0.2.0"
from .api import PUBLIC_NAMES as __all__, find_public as __getattr__, list_public as __dir__
