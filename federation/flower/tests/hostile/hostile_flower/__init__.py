"""An app that poses as Catelier's."""
