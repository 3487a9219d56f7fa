"""The report of a run, and the ranking of several.

    page           report.html: one file, no network (`sections` -> `tables`, `charts`, `reading`)
    markdown       report.md
    leaderboard    rankings in the terminal

They read scores, answers, judgments and lengths (`loading`), and compute nothing that `scores.json` already has.
"""
