// Decodes with libjpeg-turbo and libpng. Both report errors by a long jump, so no object that has a destructor is made
// between the jump's target and its end.
#include "pictures.hpp"

#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>

#include <jpeglib.h>
#include <jerror.h>
#include <png.h>

#include "bundle.hpp"

namespace {

using Bytes = std::vector<unsigned char>;

constexpr std::size_t kRgb = 3;
constexpr unsigned char kOpaque = 255;
// Pillow's limit, so that a picture is refused by all hosts or by none.
constexpr std::size_t kMostPixels = 89478485;
const char* const kNotPlain = ", which open_clip resizes before it is RGB: convert it to RGB first if that is what is meant";

class Refused : public std::runtime_error {
    using std::runtime_error::runtime_error;
};

void allocate(Picture& picture, std::size_t height, std::size_t width, std::size_t channels) {
    if (height == 0 || width == 0) {
        throw Refused("has no pixels");
    }
    if (height > kMostPixels / width) {
        throw Refused(
            "is too large: " + std::to_string(width) + " x " + std::to_string(height) + " pixels, the limit is " +
            std::to_string(kMostPixels) + ". Scale it down");
    }
    picture.height = height;
    picture.width = width;
    picture.values.resize(height * width * channels);
}

struct JpegErrors {
    jpeg_error_mgr base;
    std::jmp_buf jump;
    char message[JMSG_LENGTH_MAX];
};

[[noreturn]] void jpeg_fails(j_common_ptr decoder) {
    auto* errors = reinterpret_cast<JpegErrors*>(decoder->err);
    errors->base.format_message(decoder, errors->message);
    std::longjmp(errors->jump, 1);
}

// A file that ends early is filled with grey, with a warning alone; Pillow lets all others pass too.
void jpeg_warns(j_common_ptr decoder, int level) {
    if (level < 0 && decoder->err->msg_code == JWRN_JPEG_EOF) {
        jpeg_fails(decoder);
    }
}

class Jpeg {
public:
    Jpeg() {
        decoder_.err = jpeg_std_error(&errors_.base);
        errors_.base.error_exit = jpeg_fails;
        errors_.base.emit_message = jpeg_warns;
        if (setjmp(errors_.jump) != 0) {
            throw std::runtime_error(std::string("libjpeg cannot start: ") + errors_.message);
        }
        jpeg_create_decompress(&decoder_);
    }
    ~Jpeg() { jpeg_destroy_decompress(&decoder_); }
    Jpeg(const Jpeg&) = delete;
    Jpeg& operator=(const Jpeg&) = delete;

    Picture decode(const Bytes& content) {
        Picture picture{};
        if (!start(content)) {
            throw Refused(std::string("cannot be decoded: it is no picture, or truncated (") + errors_.message + ")");
        }
        if (decoder_.num_components != 1 && decoder_.num_components != 3) {
            throw Refused(std::string("is CMYK") + kNotPlain);
        }
        allocate(picture, decoder_.image_height, decoder_.image_width, kRgb);
        if (!finish(picture)) {
            throw Refused(std::string("cannot be decoded: it is truncated or damaged (") + errors_.message + ")");
        }
        return picture;
    }

private:
    bool start(const Bytes& content) {
        if (setjmp(errors_.jump) != 0) {
            return false;
        }
        jpeg_mem_src(&decoder_, content.data(), static_cast<unsigned long>(content.size()));
        jpeg_read_header(&decoder_, TRUE);
        return true;
    }

    bool finish(Picture& picture) {
        if (setjmp(errors_.jump) != 0) {
            return false;
        }
        decoder_.out_color_space = JCS_RGB;
        jpeg_start_decompress(&decoder_);
        while (decoder_.output_scanline < decoder_.output_height) {
            unsigned char* row = picture.values.data() + decoder_.output_scanline * picture.width * kRgb;
            jpeg_read_scanlines(&decoder_, &row, 1);
        }
        return true;
    }

    jpeg_decompress_struct decoder_{};
    JpegErrors errors_{};
};

class Png {
public:
    explicit Png(const Bytes& content) : content_(content) {
        decoder_ = png_create_read_struct(PNG_LIBPNG_VER_STRING, this, fails, [](png_structp, png_const_charp) {});
        info_ = decoder_ == nullptr ? nullptr : png_create_info_struct(decoder_);
        if (info_ == nullptr) {
            png_destroy_read_struct(&decoder_, nullptr, nullptr);
            throw std::runtime_error("libpng cannot start: there is too little memory");
        }
    }
    ~Png() { png_destroy_read_struct(&decoder_, &info_, nullptr); }
    Png(const Png&) = delete;
    Png& operator=(const Png&) = delete;

    Picture decode() {
        Picture picture{};
        if (!start()) {
            throw Refused(std::string("cannot be decoded: it is no picture, or truncated (") + message_ + ")");
        }
        const auto depth = png_get_bit_depth(decoder_, info_);
        const auto colours = png_get_color_type(decoder_, info_);
        if (colours == PNG_COLOR_TYPE_PALETTE) {
            throw Refused(std::string("has a palette") + kNotPlain);
        }
        if (depth == 16 || depth == 1) {
            throw Refused("has " + std::to_string(depth) + " bits a channel" + kNotPlain);
        }
        const bool has_alpha = (colours & PNG_COLOR_MASK_ALPHA) != 0;
        channels_ = has_alpha ? kRgb + 1 : kRgb;
        allocate(picture, png_get_image_height(decoder_, info_), png_get_image_width(decoder_, info_), channels_);
        rows_.resize(picture.height);
        for (std::size_t row = 0; row < picture.height; ++row) {
            rows_[row] = picture.values.data() + row * picture.width * channels_;
        }
        if (!finish()) {
            throw Refused(std::string("cannot be decoded: it is truncated or damaged (") + message_ + ")");
        }
        if (has_alpha) {
            drop_alpha(picture);
        }
        return picture;
    }

private:
    [[noreturn]] static void fails(png_structp decoder, png_const_charp what) {
        auto* self = static_cast<Png*>(png_get_error_ptr(decoder));
        std::snprintf(self->message_, sizeof self->message_, "%s", what);
        png_longjmp(decoder, 1);
    }

    static void reads(png_structp decoder, png_bytep into, std::size_t count) {
        auto* self = static_cast<Png*>(png_get_io_ptr(decoder));
        if (count > self->content_.size() - self->at_) {
            png_error(decoder, "the file ends early");
        }
        std::memcpy(into, self->content_.data() + self->at_, count);
        self->at_ += count;
    }

    bool start() {
        if (setjmp(png_jmpbuf(decoder_)) != 0) {
            return false;
        }
        png_set_read_fn(decoder_, this, reads);
        png_set_user_limits(decoder_, PNG_UINT_31_MAX, PNG_UINT_31_MAX);
        png_read_info(decoder_, info_);
        return true;
    }

    bool finish() {
        if (setjmp(png_jmpbuf(decoder_)) != 0) {
            return false;
        }
        // Grey of few bits to eight, and to three channels. A colour that is declared transparent is not looked at, nor
        // a gamma or profile: Pillow does neither.
        png_set_expand_gray_1_2_4_to_8(decoder_);
        png_set_gray_to_rgb(decoder_);
        png_set_interlace_handling(decoder_);
        png_read_update_info(decoder_, info_);
        if (png_get_rowbytes(decoder_, info_) != channels_ * png_get_image_width(decoder_, info_)) {
            png_error(decoder_, "its rows are not of RGB");
        }
        png_read_image(decoder_, rows_.data());
        return true;
    }

    static void drop_alpha(Picture& picture) {
        const std::size_t count = picture.height * picture.width;
        for (std::size_t place = 0; place < count; ++place) {
            const unsigned char* from = picture.values.data() + place * (kRgb + 1);
            if (from[kRgb] != kOpaque) {
                throw Refused(std::string("is transparent") + kNotPlain);
            }
            std::memmove(picture.values.data() + place * kRgb, from, kRgb);
        }
        picture.values.resize(count * kRgb);
    }

    const Bytes& content_;
    std::size_t at_ = 0;
    std::size_t channels_ = kRgb;
    std::vector<png_bytep> rows_;
    png_structp decoder_ = nullptr;
    png_infop info_ = nullptr;
    char message_[128] = "";
};

Picture decode(const Bytes& content) {
    const std::string_view text(reinterpret_cast<const char*>(content.data()), content.size());
    if (text.empty()) {
        throw Refused("is empty");
    }
    if (text.substr(0, 2) == "\xff\xd8") {
        return Jpeg().decode(content);
    }
    if (text.substr(0, 4) == "\x89PNG") {
        return Png(content).decode();
    }
    throw Refused("cannot be decoded: it is no picture in JPEG or PNG");
}

}  // namespace

Picture read_picture(const std::filesystem::path& file) {
    try {
        return decode(read_file(file));
    } catch (const Refused& error) {
        throw std::runtime_error(file.string() + " " + error.what());
    }
}
