// What a bundle says of its graph. Every function throws std::runtime_error with the file's name.
#pragma once

#include <cstddef>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

// Height and width, in pixels.
struct Size {
    std::size_t height;
    std::size_t width;
};

struct Bundle {
    // The graph. It was found to be what the manifest says.
    std::filesystem::path model;
    std::vector<std::string> labels;
    // By channel of the graph's input: which of red, green, blue and alpha it is.
    std::vector<std::size_t> channels;
    // Where the graph takes pictures of one size alone.
    std::optional<Size> size;
    // What logits are divided by before the softmax, and the best probability below which a picture is unknown.
    double temperature;
    std::optional<double> unknown_below;
    bool parity_failed;
    // Whether products of its int8 weights can overflow on an x86 CPU without VNNI.
    bool may_overflow;
};

// A directory that `calipso export --pixels` wrote.
Bundle read_bundle(const std::filesystem::path& directory);

std::vector<unsigned char> read_file(const std::filesystem::path& file);
