"""What bench/table.py writes from the rows that are done: the ledger, docs/RESULTS.md with its
pictures, and the records that `tessera report` reads. Rows are the objects of rows/KEY.json.
"""
import csv
import json
import math
import os
import statistics
import struct

KINDS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


# --- where the density went: the tile maps of a mask file (docs/FORMAT.md) ---

def side(total, tile, index):
    """Rows (or columns) of tile `index`: the last one may be ragged."""
    return min(tile, total - index * tile)


def tile_densities(path):
    """{matrix: [kept, weights]} of a hybrid mask; {} for masks of other forms. A 2:4 group keeps
    half of its columns (one of one, two of three at a ragged edge)."""
    with open(path, "rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(size))
        found = {}
        for key, value in header["__metadata__"].items():
            words = value.split()
            if not key.startswith("matrix:") or words[0] != "hybrid":
                continue
            rows, cols, tile_rows, tile_cols = map(int, words[1:])
            name = key[len("matrix:"):]
            file.seek(8 + size + header[name + ".tile_map"]["data_offsets"][0])
            across = -(-cols // tile_cols)
            tiles = -(-rows // tile_rows) * across
            bits = file.read((tiles + 7) // 8)
            kept = 0
            for t in range(tiles):
                height = side(rows, tile_rows, t // across)
                width = side(cols, tile_cols, t % across)
                dense = bits[t // 8] >> t % 8 & 1
                kept += height * (width if dense else width // 4 * 2 + min(2, width % 4))
            found[name] = [kept, rows * cols]
    return found


def density_by(tiles, group_of):
    """{group: density} in the order of first appearance."""
    sums = {}
    for name, (kept, total) in tiles.items():
        group = sums.setdefault(group_of(name), [0, 0])
        group[0] += kept
        group[1] += total
    return {group: kept / total for group, (kept, total) in sums.items()}


def layer_of(name):
    return int(name.split(".layers.")[1].split(".")[0])


def kind_of(name):
    return name.split(".")[-2]


# --- what is written ---

def distances(rows, text):
    """log(perplexity / dense perplexity) of each row."""
    dense = rows.get("dense")
    if not dense:
        return {}
    return {key: math.log(row[f"perplexity_{text}"] / dense[f"perplexity_{text}"])
            for key, row in rows.items()}


def write_ledger(path, rows, order):
    fields, lines = ["date", "commit", "machine", "isa", "precision", "key", "name", "sparsity",
                     "seed", "tile", "learning_tokens", "learning_precision", "steps",
                     "seconds_to_make", "density"], []
    for key in order:
        line = {k: round(v, 6) if isinstance(v, float) else v for k, v in rows[key].items()
                if not isinstance(v, (dict, list)) and k not in ("learned", "run", "mask")}
        fields += [k for k in line if k not in fields]
        lines.append(line)
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path + ".partial", "w", newline="") as file:
        writer = csv.DictWriter(file, fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    os.replace(path + ".partial", path)


def figure(value, digits=None):
    if value is None:
        return "–"
    if digits is not None:
        return f"{value:.{digits}f}"
    return f"{value:.1f}" if value < 1000 else f"{value:,.0f}"


def over_seeds(group, key, digits=None, scale=1):
    """Mean over the rows of a group, with the sample deviation where there are several seeds."""
    values = [scale * row[key] for row in group if row.get(key) is not None]
    if not values:
        return "–"
    mean = figure(statistics.mean(values), digits)
    return f"{mean} ± {figure(statistics.stdev(values), digits or 1)}" if len(values) > 1 else mean


def grouped(rows, order):
    """Rows that differ by their seed only, in the order of the first."""
    groups = {}
    for key in order:
        row = rows[key]
        groups.setdefault((row["name"], row["sparsity"]), []).append(row)
    return list(groups.values())


def table_lines(columns, lines):
    yield "| " + " | ".join(columns) + " |"
    yield "|" + "---|" * len(columns)
    for line in lines:
        yield "| " + " | ".join(line) + " |"


def quality_lines(rows, order, texts, tasks):
    names = [name for name, _ in texts]
    far = distances(rows, names[0])
    columns = ["model", "density", "seeds"] + [f"perplexity, {name}" for name in names] + [
        "distance", "KL"] + tasks + (["mean acc"] if tasks else []) + ["minutes to make"]
    lines = []
    for group in grouped(rows, order):
        first = group[0]
        for row in group:
            row["distance"] = far.get(row["key"])
        line = [first["name"], figure(first["density"], 4), str(len(group))]
        line += [over_seeds(group, f"perplexity_{name}") for name in names]
        line += [over_seeds(group, "distance", 3), over_seeds(group, "kl", 3)]
        line += [over_seeds(group, f"acc_{task}", 1, 100) for task in tasks]
        if tasks:
            error = first.get("mean_acc_stderr")
            line.append(over_seeds(group, "mean_acc", 1, 100) + (
                f" (± {100 * error:.1f})" if error is not None and len(group) == 1 else ""))
        line.append(over_seeds(group, "seconds_to_make", 1, 1 / 60))
        lines.append(line)
    return table_lines(columns, lines)


def density_lines(rows, order):
    """By matrix kind and by fifths of the depth, for rows that leave some tiles dense."""
    shown = [rows[key] for key in order if rows[key].get("tiles") and
             0.501 < rows[key]["density"] < 0.999 and not rows[key].get("weights")]
    if not shown:
        return
    layers = 1 + max(layer_of(name) for name in shown[0]["tiles"])
    parts = min(5, layers)

    def part_of(name):
        return layer_of(name) * parts // layers

    bounds = [[n for n in range(layers) if n * parts // layers == p] for p in range(parts)]
    columns = ["model", "density"] + [kind.replace("_proj", "") for kind in KINDS] + [
        f"blocks {b[0]}–{b[-1]}" if len(b) > 1 else f"block {b[0]}" for b in bounds]
    lines = []
    for row in shown:
        by_kind, by_part = (density_by(row["tiles"], f) for f in (kind_of, part_of))
        lines.append([row["key"], figure(row["density"], 3)]
                     + [figure(by_kind.get(kind), 3) for kind in KINDS]
                     + [figure(by_part.get(p), 3) for p in range(parts)])
    yield from table_lines(columns, lines)


def scatter(path, points, x_label, y_label, x_log=False):
    """points: (x, y, label, filled). y is logarithmic."""
    width, height, left, top, right, bottom = 860, 440, 64, 16, 150, 48
    points = [p for p in points if p[0] and p[1]]
    if len(points) < 2:
        return False
    fx = math.log10 if x_log else float
    xs, ys = [fx(p[0]) for p in points], [math.log10(p[1]) for p in points]
    x0, x1 = min(xs) - 0.04 * (max(xs) - min(xs) or 1), max(xs) + 0.04 * (max(xs) - min(xs) or 1)
    y0, y1 = min(ys) - 0.05, max(ys) + 0.05

    def at_x(x):
        return left + (fx(x) - x0) / (x1 - x0) * (width - left - right)

    def at_y(y):
        return height - bottom - (math.log10(y) - y0) / (y1 - y0) * (height - top - bottom)

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
           f'font-family="sans-serif" font-size="11">',
           f'<rect width="{width}" height="{height}" fill="#fff"/>']
    for y in (m * 10.0 ** e for e in range(0, 6) for m in (1, 2, 5)):
        if y0 <= math.log10(y) <= y1:
            out.append(f'<path d="M{left} {at_y(y):.1f}H{width - right}" stroke="#ddd"/>'
                       f'<text x="{left - 6}" y="{at_y(y) + 4:.1f}" text-anchor="end">{y:g}</text>')
    ticks = [m * 10.0 ** e for e in range(-2, 5) for m in (1, 3)] if x_log else range(0, 101, 5)
    for x in ticks:
        if x and x0 <= fx(x) <= x1:
            out.append(f'<path d="M{at_x(x):.1f} {top}V{height - bottom}" stroke="#eee"/>'
                       f'<text x="{at_x(x):.1f}" y="{height - bottom + 16}" text-anchor="middle">'
                       f'{x:g}</text>')
    out.append(f'<text x="{left}" y="{height - 10}">{x_label}</text>'
               f'<text x="14" y="{height - bottom}" transform="rotate(-90 14 {height - bottom})">'
               f'{y_label}</text>')
    for x, y, label, filled in points:
        fill = "#1f6fb4" if filled else "#fff"
        out.append(f'<circle cx="{at_x(x):.1f}" cy="{at_y(y):.1f}" r="4" fill="{fill}" '
                   f'stroke="#1f6fb4" stroke-width="1.5"/>'
                   f'<text x="{at_x(x) + 7:.1f}" y="{at_y(y) + 4:.1f}">{label}</text>')
    out.append("</svg>\n")
    with open(path, "w") as file:
        file.write("\n".join(out))
    return True


def short(row):
    seed = "" if row["seed"] in (None, 1) else f" s{row['seed']}"
    return row["name"] + seed


def write_pictures(folder, rows, order, text):
    os.makedirs(folder, exist_ok=True)
    key = f"perplexity_{text}"
    density = [(100 * rows[k]["density"], rows[k][key], short(rows[k]), rows[k]["learned"])
               for k in order]
    minutes = [(rows[k].get("seconds_to_make", 0) / 60, rows[k][key], short(rows[k]),
                rows[k]["learned"]) for k in order]
    names = {}
    for name, title, points, label, log in (
            ("quality_density.svg", "Quality against density", density, "weights kept, %", False),
            ("quality_minutes.svg", "Quality against minutes", minutes, "minutes to make the mask",
             True)):
        if scatter(os.path.join(folder, name), points, label, f"perplexity, {text}", log):
            names[name] = title
    return names


def write_document(path, a, rows, order, missing):
    """`a`: the driver's arguments; `missing`: keys of ordinary rows that were not made."""
    first = rows[order[0]]
    pictures = write_pictures(os.path.dirname(a.csv) or ".", rows, order, a.texts[0][0])
    texts = ", ".join(f"{name} ({rows[order[0]][f'predictions_{name}']:,} predictions)"
                      for name, _ in a.texts)
    lines = ["# Results", "",
             "Written by `make table` (`bench/table.py`) from one file a row; every figure with its",
             "commit, machine and settings is in [results/quality_table.csv]"
             "(../results/quality_table.csv).", "",
             f"- model: {a.name}",
             f"- machine: {first['machine']}, {first['isa']}; evaluated in {first['precision']}",
             f"- perplexity: windows of {a.window} tokens of {texts}; nothing was learned from them",
             "- distance: log(perplexity / dense perplexity) on the first text; KL to the dense "
             "model there, nats a token",
             f"- one-shot masks and priors: {a.calib_tokens:,} tokens of calibration; learned masks: "
             f"{a.tokens:,} tokens each (tile over maskllm: as many for each of the two)",
             "- weights are frozen in all rows but two kinds: *refit* fits the kept weights to the "
             f"dense model's activations on {a.calib_tokens:,} tokens; *recovered* fine-tunes them, "
             f"after refit where the mask is one-shot, on {a.tokens:,} tokens towards the dense model",
             "- densities are of the prunable matrices, counted from the masks"]
    if a.tasks:
        lines.append(f"- zero-shot accuracy in %, the first {a.limit} items of each task "
                     "(docs/TASKS.md): raw acc, as the paper averages it; in brackets the standard "
                     "error of the mean over items")
    if a.note:
        lines.append(f"- {a.note}")
    lines.append("- several seeds: mean ± sample deviation over seeds; one seed: no spread is known")
    lines += ["", "## Quality", "", *quality_lines(rows, order, a.texts, a.tasks)]
    for name, title in pictures.items():
        place = os.path.relpath(os.path.join(os.path.dirname(a.csv) or ".", name),
                                os.path.dirname(path) or ".")
        lines += ["", f"![{title}]({place})"]
    went = list(density_lines(rows, order))
    if went:
        lines += ["", "## Where the density went", "",
                  "Share of the weights kept, by kind of matrix and by depth. The paper finds the "
                  "middle blocks pruned most, K and V least.", "", *went]
    if missing:
        lines += ["", "Not run: " + ", ".join(missing) + "."]
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path + ".partial", "w") as file:
        file.write("\n".join(lines) + "\n")
    os.replace(path + ".partial", path)


def write_records(path, a, rows, order):
    """results.jsonl, for `tessera report` (docs/RECORD.md)."""
    text = a.texts[0][0]
    with open(path, "w") as file:
        file.write(json.dumps({"type": "about", "title": "Quality table", "model": a.name,
                               "text": text, "machine": rows[order[0]]["machine"]}) + "\n")
        for key in order:
            row = rows[key]
            line = {"type": "row", "name": key, "note": row["name"],
                    "perplexity": row[f"perplexity_{text}"],
                    "perplexity_stderr": row[f"perplexity_stderr_{text}"],
                    "window": a.window, "predictions": row[f"predictions_{text}"]}
            for member in ("density", "kl", "kl_stderr", "top1_agreement", "learning_tokens",
                           "seconds_to_make", "run", "mask"):
                if row.get(member) is not None:
                    line[member] = row[member]
            file.write(json.dumps(line) + "\n")
