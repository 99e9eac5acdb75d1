// The mark of a library: what it was built from. Included by one source of each library.

#pragma once

#define FSDINO_TEXT(...) FSDINO_TEXT_OF(__VA_ARGS__)
#define FSDINO_TEXT_OF(...) #__VA_ARGS__

namespace {

// Python searches the file for this before loading it: a library that was built for another
// PyTorch, or from other sources, is never loaded.
[[gnu::used]] const char kMark[] = "fsdino-extension torch=" FSDINO_TEXT(
    FSDINO_TORCH) " sources=" FSDINO_TEXT(FSDINO_SOURCES) " end";

}  // namespace
