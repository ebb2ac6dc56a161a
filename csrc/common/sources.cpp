#include "common/sources.h"

namespace pxfast {

const char* sources() { return PXFAST_SOURCES; }

}  // namespace pxfast
