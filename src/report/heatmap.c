/* Heat maps: see heatmap.h. Shading is the opacity of one colour, so that the same picture works on
 * light and dark pages and on paper. */
#include "report/heatmap.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "report/svg.h"

/* --- names to places --- */

struct place {
  int block;
  char role[24];
};

/* "model.layers.12.self_attn.q_proj.weight" -> 12, "q". */
static bool parse_name(const char *name, struct place *place) {
  const char *at = name;
  size_t length = 0;
  place->block = -1;
  *place->role = 0;
  for (; *at; at += length + (at[length] == '.')) {
    length = strcspn(at, ".");
    char *end;
    long number = strtol(at, &end, 10);
    if (length > 0 && end == at + length && number >= 0 && number < HEATMAP_BLOCKS_MAX) {
      place->block = (int)number;
    } else if (!(length == 6 && !strncmp(at, "weight", 6))) {
      size_t shown = length > 5 && !strncmp(at + length - 5, "_proj", 5) ? length - 5 : length;
      snprintf(place->role, sizeof place->role, "%.*s", (int)shown, at);
    }
  }
  return place->block >= 0 && *place->role;
}

static int find_role(struct mask_grid *grid, const char *role, bool add) {
  for (int r = 0; r < grid->roles; r++)
    if (!strcmp(grid->role[r], role)) return r;
  if (!add || grid->roles == HEATMAP_ROLES_MAX) return -1;
  snprintf(grid->role[grid->roles], sizeof grid->role[0], "%s", role);
  return grid->roles++;
}

/* Forward order for the roles that decoders have; others follow as they come. */
static void add_known_roles(struct mask_grid *grid, const struct mask_set *mask) {
  static const char *const known[] = {"q", "k", "v", "o", "gate", "up", "down"};
  for (size_t k = 0; k < sizeof known / sizeof *known; k++)
    for (size_t i = 0; i < mask->count; i++) {
      struct place place;
      if (parse_name(mask->items[i].name, &place) && !strcmp(place.role, known[k]))
        find_role(grid, known[k], true);
    }
}

bool mask_grid_init(struct mask_grid *grid, const struct mask_set *mask) {
  *grid = (struct mask_grid){0};
  struct place place;
  add_known_roles(grid, mask);
  for (size_t i = 0; i < mask->count; i++)
    if (parse_name(mask->items[i].name, &place) && find_role(grid, place.role, true) >= 0 &&
        place.block >= grid->blocks)
      grid->blocks = place.block + 1;
  if (grid->blocks == 0) return false;
  grid->at = mem_alloc((size_t)grid->blocks * (size_t)grid->roles,
                       sizeof(const struct mask_matrix *), NULL);
  INVARIANT(grid->at != NULL);
  for (size_t i = 0; i < mask->count; i++) {
    if (!parse_name(mask->items[i].name, &place)) continue;
    int role = find_role(grid, place.role, false);
    if (role >= 0) grid->at[place.block * grid->roles + role] = &mask->items[i];
  }
  return true;
}

void mask_grid_release(struct mask_grid *grid) {
  mem_free(grid->at);
  *grid = (struct mask_grid){0};
}

/* --- sums --- */

struct share {
  double kept, area;
};

static void share_add(struct share *s, const struct mask_matrix *m) {
  if (!m) return;
  s->kept += (double)mask_kept(m);
  s->area += (double)m->rows * (double)m->cols;
}

static double share_of(struct share s) { return s.area > 0 ? s.kept / s.area : NAN; }

bool mask_has_dense_tiles(const struct mask_set *mask) {
  for (size_t i = 0; i < mask->count; i++) {
    const struct mask_matrix *m = &mask->items[i];
    if (mask_has_tiles(m) && memchr(m->tiles, 1, (size_t)mask_tile_count(m))) return true;
  }
  return false;
}

/* --- densities --- */

enum { CELL_WIDTH = 58, CELL_HEIGHT = 19, GRID_LEFT = 62, GRID_TOP = 42, BAR_WIDTH = 150 };

/* From the least dense cell to 1: what would otherwise be a few neighbouring shades gets all. */
static double shade_of(double density, double least) {
  if (!(least < 1)) return 1;
  double share = (density - least) / (1 - least);
  return 0.05 + 0.95 * fmin(1, fmax(0, share));
}

static void draw_cell(struct strbuf *out, double x, double y, double density, double least) {
  char text[16];
  double shade = shade_of(density, least);
  svg_rect(out, "cell", x, y, CELL_WIDTH - 2, CELL_HEIGHT - 2);
  svg_shade(out, "heat", x, y, CELL_WIDTH - 2, CELL_HEIGHT - 2, shade);
  snprintf(text, sizeof text, "%.0f", density * 100);
  svg_text(out, shade > 0.55 ? "cellhigh" : "celltext", x + CELL_WIDTH / 2.0 - 1,
           y + CELL_HEIGHT - 6, SVG_MIDDLE, text);
}

/* Bars begin where a mask without dense tiles is: at one half, or at 0 for other patterns. */
static double bar_start(double least) { return least > 0.4999 ? 0.5 : 0; }

static void draw_bar(struct strbuf *out, double x, double y, double density, double start) {
  char text[16];
  double share = fmin(1, fmax(0, (density - start) / (1 - start)));
  svg_rect(out, "cell", x, y + 3, BAR_WIDTH, CELL_HEIGHT - 8);
  svg_rect(out, "heat", x, y + 3, BAR_WIDTH * share, CELL_HEIGHT - 8);
  snprintf(text, sizeof text, "%.1f", density * 100);
  svg_text(out, "tick", x + BAR_WIDTH + 6, y + CELL_HEIGHT - 6, SVG_START, text);
}

static double least_density(const struct mask_grid *grid) {
  double least = 1;
  for (int i = 0; i < grid->blocks * grid->roles; i++) {
    struct share s = {0};
    share_add(&s, grid->at[i]);
    if (s.area > 0) least = fmin(least, share_of(s));
  }
  return least;
}

static struct share block_share(const struct mask_grid *grid, int block) {
  struct share s = {0};
  for (int r = 0; r < grid->roles; r++) share_add(&s, grid->at[block * grid->roles + r]);
  return s;
}

static double role_left(int role) { return GRID_LEFT + role * CELL_WIDTH; }

static void draw_block(struct strbuf *out, const struct mask_grid *grid, int block, double least) {
  char text[16];
  double y = GRID_TOP + block * CELL_HEIGHT;
  snprintf(text, sizeof text, "%d", block);
  svg_text(out, "tick", GRID_LEFT - 8, y + CELL_HEIGHT - 6, SVG_END, text);
  for (int r = 0; r < grid->roles; r++) {
    struct share s = {0};
    share_add(&s, grid->at[block * grid->roles + r]);
    if (s.area > 0) draw_cell(out, role_left(r), y, share_of(s), least);
  }
  struct share all = block_share(grid, block);
  if (all.area > 0) draw_bar(out, role_left(grid->roles) + 14, y, share_of(all), bar_start(least));
}

/* The last row: each role over all blocks, and the whole. */
static void draw_totals(struct strbuf *out, const struct mask_grid *grid, double least) {
  double y = GRID_TOP + grid->blocks * CELL_HEIGHT + 8;
  struct share whole = {0};
  svg_text(out, "label", GRID_LEFT - 8, y + CELL_HEIGHT - 6, SVG_END, "all");
  for (int r = 0; r < grid->roles; r++) {
    struct share s = {0};
    for (int b = 0; b < grid->blocks; b++) share_add(&s, grid->at[b * grid->roles + r]);
    whole.kept += s.kept;
    whole.area += s.area;
    if (s.area > 0) draw_cell(out, role_left(r), y, share_of(s), least);
  }
  draw_bar(out, role_left(grid->roles) + 14, y, share_of(whole), bar_start(least));
}

void heatmap_densities(struct strbuf *out, const struct mask_grid *grid) {
  double bars = GRID_LEFT + grid->roles * CELL_WIDTH + 14, least = least_density(grid);
  svg_begin(out, bars + BAR_WIDTH + 44, GRID_TOP + (grid->blocks + 1) * CELL_HEIGHT + 14,
            "Density of each matrix, block and role, in percent");
  svg_text(out, "label", GRID_LEFT - 8, GRID_TOP - 8, SVG_END, "block");
  for (int r = 0; r < grid->roles; r++)
    svg_text(out, "label", GRID_LEFT + (r + 0.5) * CELL_WIDTH - 1, GRID_TOP - 8, SVG_MIDDLE,
             grid->role[r]);
  svg_text(out, "label", bars, 14, SVG_START, "% kept in the whole block");
  svg_text(out, "tick", bars, GRID_TOP - 8, SVG_START, bar_start(least) > 0 ? "50" : "0");
  svg_text(out, "tick", bars + BAR_WIDTH, GRID_TOP - 8, SVG_END, "100");
  svg_text(out, "label", GRID_LEFT, 14, SVG_START, "% of weights kept in each matrix");
  for (int b = 0; b < grid->blocks; b++) draw_block(out, grid, b, least);
  draw_totals(out, grid, least);
  svg_end(out);
}

/* --- tiles --- */

enum { MAP_WIDTH = 900, MAP_LABEL = 30, MAP_GAP = 6, CELLS_MAX = 24, SHADES = 4 };

struct map_layout {
  int64_t merge; /* tiles in each direction that one drawn cell stands for */
  double cell;   /* pixels */
  double role_x[HEATMAP_ROLES_MAX + 1];
  double block_height, block_width;
  int columns; /* blocks side by side */
};

static int64_t cells_of(int64_t tiles, int64_t merge) { return (tiles + merge - 1) / merge; }

static struct map_layout lay_out(const struct mask_grid *grid) {
  struct map_layout l = {.merge = 1};
  int64_t wide[HEATMAP_ROLES_MAX] = {0}, most = 1, high = 1, total = 0;
  for (int i = 0; i < grid->blocks * grid->roles; i++) {
    const struct mask_matrix *m = grid->at[i];
    if (!m || !mask_has_tiles(m)) continue;
    int64_t rows = mask_tile_row_count(m), cols = mask_tile_col_count(m);
    if (cols > wide[i % grid->roles]) wide[i % grid->roles] = cols;
    if (rows > high) high = rows;
    if (rows > most) most = rows;
    if (cols > most) most = cols;
  }
  l.merge = cells_of(most, CELLS_MAX);
  for (int r = 0; r < grid->roles; r++) total += cells_of(wide[r], l.merge);
  l.cell = fmin(5, (MAP_WIDTH - MAP_LABEL - grid->roles * MAP_GAP) / (double)(total ? total : 1));
  double x = MAP_LABEL;
  for (int r = 0; r < grid->roles; r++) {
    l.role_x[r] = x;
    x += fmax((double)cells_of(wide[r], l.merge) * l.cell, svg_text_width(grid->role[r])) + MAP_GAP;
  }
  l.block_width = x + 2 * MAP_GAP;
  l.block_height = (double)cells_of(high, l.merge) * l.cell + MAP_GAP;
  l.columns = (int)fmax(1, floor(MAP_WIDTH / l.block_width));
  return l;
}

/* Share of dense tiles among those that cell (row, col) stands for. */
static double cell_share(const struct mask_matrix *m, int64_t row, int64_t col, int64_t merge) {
  int64_t rows = mask_tile_row_count(m), cols = mask_tile_col_count(m), dense = 0, all = 0;
  for (int64_t r = row * merge; r < (row + 1) * merge && r < rows; r++)
    for (int64_t c = col * merge; c < (col + 1) * merge && c < cols; c++, all++)
      dense += m->tiles[r * cols + c];
  return (double)dense / (double)all;
}

static void draw_matrix(struct strbuf *out, const struct mask_matrix *m, const struct map_layout *l,
                        double x, double y) {
  int64_t rows = cells_of(mask_tile_row_count(m), l->merge);
  int64_t cols = cells_of(mask_tile_col_count(m), l->merge);
  svg_rect(out, "cell", x, y, (double)cols * l->cell, (double)rows * l->cell);
  for (int shade = 1; shade <= SHADES; shade++) {
    bool open = false;
    for (int64_t r = 0; r < rows; r++)
      for (int64_t c = 0, run; c < cols; c += run) {
        run = 1;
        if ((int)ceil(cell_share(m, r, c, l->merge) * SHADES) != shade) continue;
        while (c + run < cols && (int)ceil(cell_share(m, r, c + run, l->merge) * SHADES) == shade)
          run++;
        char class[16];
        snprintf(class, sizeof class, "tile t%d", shade);
        if (!open) svg_path_begin(out, class);
        open = true;
        svg_path_box(out, x + (double)c * l->cell, y + (double)r * l->cell, (double)run * l->cell,
                     l->cell);
      }
    if (open) svg_path_end(out);
  }
}

static void draw_role_names(struct strbuf *out, const struct mask_grid *grid,
                            const struct map_layout *l, int columns) {
  for (int c = 0; c < columns; c++)
    for (int r = 0; r < grid->roles; r++)
      svg_text(out, "tick", c * l->block_width + l->role_x[r], 12, SVG_START, grid->role[r]);
}

void heatmap_tiles(struct strbuf *out, const struct mask_grid *grid) {
  struct map_layout l = lay_out(grid);
  int lines = (grid->blocks + l.columns - 1) / l.columns;
  int columns = grid->blocks < l.columns ? grid->blocks : l.columns;
  svg_begin(out, columns * l.block_width, 20 + lines * l.block_height,
            "Dense tiles of every matrix");
  draw_role_names(out, grid, &l, columns);
  for (int b = 0; b < grid->blocks; b++) {
    const int column = b / lines, line = b % lines;
    double left = column * l.block_width, top = 20 + line * l.block_height;
    char text[16];
    snprintf(text, sizeof text, "%d", b);
    svg_text(out, "tick", left + MAP_LABEL - 8, top + 10, SVG_END, text);
    for (int r = 0; r < grid->roles; r++) {
      const struct mask_matrix *m = grid->at[b * grid->roles + r];
      if (m && mask_has_tiles(m)) draw_matrix(out, m, &l, left + l.role_x[r], top);
    }
  }
  svg_end(out);
}
