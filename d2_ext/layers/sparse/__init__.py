"""Masked convolutions that compute, in inference, the active positions only. Each floor imports only those below it.

=================== ====================================================================================================
``tower``           the context-enhanced sparse tower: the definition, for training, and the way into inference
``inference``       the layers of a tower at active rows, step by step
``work``            which active rows are computed together on a CPU, and in which order
``conv``            one convolution at some rows: the dense reference, and the gather path
``kernels``         which kernel of a GPU gathers fastest; ``triton_conv`` is one of them
``winograd``        2x2 tiles of outputs for fewer products
``layer``           3x3 convolution and norm
``position_norm``   normalization of each position over its channels, and what follows a layer's convolution
``context_norm``    normalization by the statistics of a context map, and what follows a layer's convolution
``gumbel``          binary masks that can be learned
``linear``          products of rows with a kernel
``rows``            tables of rows of several maps, and their neighborhoods
=================== ====================================================================================================
"""
