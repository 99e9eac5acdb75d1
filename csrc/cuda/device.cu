// What the host asks of the current device.

#include "device.h"

namespace fsdino::cuda {

bool runs_hopper_code() { return device_runs_hopper_code(); }

}  // namespace fsdino::cuda
