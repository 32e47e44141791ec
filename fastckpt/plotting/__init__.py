"""`fastckpt plot`: what a checkpoint looks like.

Facts first: a file is verified and measured, tensor by tensor in pieces of
bounded size (`survey`, `measure`, `chunk_states`). They are drawn as SVG
(`treemap`, `lines`, `heatmap`, `histograms`, `chunk_map`) and put on one page
(`page`) that needs neither scripts nor a network. The same facts give the same
bytes.
"""
