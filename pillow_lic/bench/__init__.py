"""The benchmark: real files of several codecs, their sizes, distortions and times."""
