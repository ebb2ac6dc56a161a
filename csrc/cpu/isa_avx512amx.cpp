#include "amx.h"
// before what multiplies
#include "alone.h"

namespace pxfast {
namespace {

bool decode_block_on_tiles(const Program& program, Workspace& workspace, const uint8_t* input, uint8_t* output,
                           int images, const Chooser& chooser, const Control& control) {
  take_tiles();
  const bool finished = decode_block<Bf16>(program, workspace, input, output, images, chooser, control);
  give_tiles_back();
  return finished;
}

bool decode_alone_on_tiles(const Program& program, Workspace& workspace, const uint8_t* input, uint8_t* output,
                           const Chooser& chooser, Order order, const Control& control, Team* team, int member) {
  take_tiles();
  const bool finished = decode_alone<Bf16>(program, workspace, input, output, chooser, order, control, team, member);
  give_tiles_back();
  return finished;
}

constexpr Backend on_tiles() {
  Backend backend = make_backend<Bf16>();
  backend.decode = decode_block_on_tiles;
  backend.decode_alone = decode_alone_on_tiles;
  return backend;
}

}  // namespace

extern const Backend kBackendFp32_avx512amx;
extern const Backend kBackendBf16_avx512amx;

const Backend kBackendFp32_avx512amx = make_backend<float>();
const Backend kBackendBf16_avx512amx = on_tiles();

}  // namespace pxfast
