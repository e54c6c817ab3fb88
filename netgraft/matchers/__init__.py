"""Which source layer goes to which target layer. One file each; the folder is the list of matchers (``protocol``)."""
