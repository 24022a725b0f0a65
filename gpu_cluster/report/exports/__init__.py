"""The formats in which a finished run can be exported: each module fills a folder with the files of one format.

What a format needs enters as tables, blocks of rows and small copies. These modules must not know where a run or its
embeddings come from, or how the folder gets its final name.
"""
