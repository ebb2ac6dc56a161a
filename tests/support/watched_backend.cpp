// Stands for the portable backend in fp32, which is compiled as kWatchedBackend. CANCELLED_AFTER: how many times the
// decode of a block is told to go on. stderr: whether it finished, and how often it asked.
#include <cstdio>
#include <cstdlib>

#include "cpu/program.h"

namespace pxfast {

extern const Backend kWatchedBackend;
extern const Backend kBackendFp32_portable;

namespace {

long asked = 0, told_to_go_on = 0;  // by the only thread

bool decode(const Program& program, Workspace& workspace, const uint8_t* input, uint8_t* output, int images,
            const Chooser& chooser, const Control& control) {
  told_to_go_on = std::atol(std::getenv("CANCELLED_AFTER"));
  const Control watched = {[](void*) { return ++asked > told_to_go_on; }, control.row_done, control.context};
  const bool finished = kWatchedBackend.decode(program, workspace, input, output, images, chooser, watched);
  std::fprintf(stderr, "%d %ld ", finished, asked);
  return finished;
}

}  // namespace

const Backend kBackendFp32_portable = {
    sizeof(float),
    1,
    [](Step& step, size_t rows) { kWatchedBackend.plan(step, rows); },
    [](const Step& step, const Tap& tap, int channels, const float* matrix, void* packed) {
      kWatchedBackend.pack(step, tap, channels, matrix, packed);
    },
    [](const Program& program) { return kWatchedBackend.products_size(program); },
    decode,
    nullptr,
};

}  // namespace pxfast
