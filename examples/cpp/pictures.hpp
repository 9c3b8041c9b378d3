// Decodes JPEG and PNG as Pillow does.
#pragma once

#include <cstddef>
#include <filesystem>
#include <vector>

// uint8 [height,width,3], RGB.
struct Picture {
    std::vector<unsigned char> values;
    std::size_t height;
    std::size_t width;
};

// Neither turned by its EXIF orientation nor colour-managed.
// Throws std::runtime_error with the file's name: it is no such picture, truncated, too large, or of a kind that
// open_clip resizes before it is RGB.
Picture read_picture(const std::filesystem::path& file);
