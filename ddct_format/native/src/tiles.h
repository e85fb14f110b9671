/* The processor's matrix unit (AMX): tiles of 16 rows of 64 bytes. For Linux on x86-64, where HAVE_AMX says so. */
#ifndef DDCT_NATIVE_TILES_H
#define DDCT_NATIVE_TILES_H

enum { TILE_ROWS = 16, TILE_ROW_BYTES = 64 };

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_shapes;

/* Tiles are numbered in the instruction. A product's first factor is A: its rows meet groups of rows of B. */
#define TILE_LOAD(TILE, FROM, PITCH)                                                                                \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #TILE : : "r"(FROM), "r"((long)(PITCH)) : "memory")
#define TILE_STORE(TILE, TO, PITCH)                                                                                 \
    __asm__ volatile("tilestored %%tmm" #TILE ", (%0,%1,1)" : : "r"(TO), "r"((long)(PITCH)) : "memory")
#define TILE_CLEAR(TILE) __asm__ volatile("tilezero %%tmm" #TILE : :)
#define TILE_PRODUCT(INSTRUCTION, C, A, B)                                                                          \
    __asm__ volatile(#INSTRUCTION " %%tmm" #B ", %%tmm" #A ", %%tmm" #C : :)

/* Between these, the calling thread has eight full tiles. */
static inline void begin_tiles(void) {
    tile_shapes shapes = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        shapes.row_bytes[i] = TILE_ROW_BYTES;
        shapes.rows[i] = TILE_ROWS;
    }
    __asm__ volatile("ldtilecfg %0" : : "m"(shapes));
}
static inline void end_tiles(void) { __asm__ volatile("tilerelease" : :); }

#endif
