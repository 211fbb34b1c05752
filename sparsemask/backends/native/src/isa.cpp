// One instruction set's kernels: compiled once for each, with its flags and its name.
#include "rows.h"
#include "tiles.h"
#include "narrow.h"
#include "points.h"
#include "stereo.h"
#include "inverted.h"
#include "locate.h"
#include "scales.h"
