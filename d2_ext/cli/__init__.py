"""The commands, one module each; the scripts of ``tools`` and ``train_net.py`` call them."""
