/* Pictures of where a mask's density went: one number for each matrix, and every tile. */
#ifndef TSR_REPORT_HEATMAP_H
#define TSR_REPORT_HEATMAP_H

#include "base/strbuf.h"
#include "sparse/mask.h"

/* The matrices of a mask as a table of blocks (rows) and roles (columns), from their names. */
enum { HEATMAP_ROLES_MAX = 16, HEATMAP_BLOCKS_MAX = 1024 };
struct mask_grid {
  int blocks, roles;
  char role[HEATMAP_ROLES_MAX][24];
  const struct mask_matrix **at; /* (blocks, roles), NULL where the mask has no such matrix */
};
/* False when no name has the form "... .<block>. ... .<role>.weight". */
bool mask_grid_init(struct mask_grid *grid, const struct mask_set *mask);
void mask_grid_release(struct mask_grid *grid);

bool mask_has_dense_tiles(const struct mask_set *mask);

/* Density of each matrix as a number on its colour, of each block as a bar, of each role. */
void heatmap_densities(struct strbuf *out, const struct mask_grid *grid);
/* Each matrix drawn to scale, its dense tiles filled; many tiles are drawn by their mean. */
void heatmap_tiles(struct strbuf *out, const struct mask_grid *grid);

#endif
