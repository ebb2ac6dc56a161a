// AMX's instructions in plain code, as Intel's manual defines them (Software Developer's Manual, volume 2: LDTILECFG,
// TILELOADD, TDPBF16PS, ...), but for denormal numbers, which the processor takes for 0. Shapes that the processor would
// refuse, or that leave a part of a product out, end the program. Included by csrc/cpu/amx.h, within a namespace.

struct EmulatedTile {
  int rows, row_bytes;
  alignas(64) uint8_t bytes[16][64];

  template <class Value>
  Value at(int row, int column) const {
    Value value;
    std::memcpy(&value, &bytes[row][column * (int)sizeof(Value)], sizeof(Value));
    return value;
  }
};
thread_local EmulatedTile emulated_tiles[8];

inline void require(bool fits, const char* what) {
  if (fits) return;
  std::fprintf(stderr, "tiles: %s\n", what);
  std::abort();
}

inline void tile_configure(const TileShapes& shapes) {
  require(shapes.palette == 1, "palette");
  for (int i = 0; i < 8; ++i) {
    require(shapes.rows[i] >= 1 && shapes.rows[i] <= 16, "rows");
    require(shapes.row_bytes[i] >= 4 && shapes.row_bytes[i] <= 64 && shapes.row_bytes[i] % 4 == 0, "bytes of a row");
    emulated_tiles[i] = {shapes.rows[i], shapes.row_bytes[i], {}};
  }
}

inline void tile_release() {
  for (EmulatedTile& tile : emulated_tiles) tile = {};
}

template <int kTile>
void tile_load(const void* from, long row_bytes) {
  EmulatedTile& tile = emulated_tiles[kTile];
  require(tile.rows > 0, "no shapes are set");
  for (int row = 0; row < tile.rows; ++row)
    std::memcpy(tile.bytes[row], static_cast<const char*>(from) + row * row_bytes, (size_t)tile.row_bytes);
}

template <int kTile>
void tile_store(void* to, long row_bytes) {
  const EmulatedTile& tile = emulated_tiles[kTile];
  for (int row = 0; row < tile.rows; ++row)
    std::memcpy(static_cast<char*>(to) + row * row_bytes, tile.bytes[row], (size_t)tile.row_bytes);
}

template <int kTile>
void tile_zero() {
  std::memset(emulated_tiles[kTile].bytes, 0, sizeof emulated_tiles[kTile].bytes);
}

inline float from_bf16(uint16_t bits) {
  const uint32_t wide = (uint32_t)bits << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

// Even and odd channels are summed apart, then added to the sums. A product of two bf16 is exact in fp32.
template <int kSum, int kCells, int kWeights>
void tile_multiply() {
  EmulatedTile& sums = emulated_tiles[kSum];
  const EmulatedTile &cells = emulated_tiles[kCells], &weights = emulated_tiles[kWeights];
  const int pairs = weights.rows, outputs = sums.row_bytes / 4;
  require(sums.rows > 0 && sums.rows == cells.rows, "rows of sums and cells");
  require(cells.row_bytes == 4 * pairs, "channels of cells and weights");
  require(sums.row_bytes == weights.row_bytes, "outputs of sums and weights");
  float unpacked[32][16];
  for (int pair = 0; pair < pairs; ++pair)
    for (int i = 0; i < 2 * outputs; ++i)
      unpacked[2 * pair + i % 2][i / 2] = from_bf16(weights.at<uint16_t>(pair, i));
  for (int row = 0; row < sums.rows; ++row) {
    float found[2][16] = {};
    for (int channel = 0; channel < 2 * pairs; ++channel) {
      const float cell = from_bf16(cells.at<uint16_t>(row, channel));
      for (int output = 0; output < 16; ++output) found[channel % 2][output] += cell * unpacked[channel][output];
    }
    for (int output = 0; output < outputs; ++output) {
      const float sum = sums.at<float>(row, output) + (found[0][output] + found[1][output]);
      std::memcpy(&sums.bytes[row][4 * output], &sum, 4);
    }
  }
}
