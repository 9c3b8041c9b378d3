// Reads manifest.json, and checks the graph against it.
#include "bundle.hpp"

#include <array>
#include <cmath>
#include <fstream>
#include <initializer_list>
#include <map>
#include <stdexcept>
#include <system_error>

#include <nlohmann/json.hpp>
#include <openssl/evp.h>

namespace {

using nlohmann::json;
using std::filesystem::path;

constexpr int kSchemaVersion = 1;
const std::map<std::string, std::vector<std::size_t>> kChannels = {
    {"rgb", {0, 1, 2}}, {"bgr", {2, 1, 0}}, {"rgba", {0, 1, 2, 3}}, {"bgra", {2, 1, 0, 3}}};

[[noreturn]] void fail(const path& file, const std::string& what) {
    throw std::runtime_error(file.string() + " " + what);
}

std::string sha256_of(const std::vector<unsigned char>& content) {
    std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
    unsigned int length = 0;
    if (EVP_Digest(content.data(), content.size(), digest.data(), &length, EVP_sha256(), nullptr) != 1) {
        throw std::runtime_error("OpenSSL cannot compute a sha256");
    }
    std::string text;
    for (unsigned int place = 0; place < length; ++place) {
        text += "0123456789abcdef"[digest[place] >> 4U];
        text += "0123456789abcdef"[digest[place] & 15U];
    }
    return text;
}

void check_file(const path& file, const json& promised) {
    const auto content = read_file(file);
    if (content.size() != promised.at("bytes").get<std::size_t>() || sha256_of(content) != promised.at("sha256").get<std::string>()) {
        fail(file, "is not what its manifest says: truncated, or changed after its export. Copy it again");
    }
}

void read_input(Bundle& bundle, const json& input, const path& file) {
    const auto channels = input.is_object() ? kChannels.find(input.value("channels", "")) : kChannels.end();
    if (channels == kChannels.end() || input.value("name", "") != "pixels") {
        fail(file, "is of a graph that does not take raw pixels: export with --pixels");
    }
    bundle.channels = channels->second;
    if (!input.at("size").is_null()) {
        const auto size = input.at("size").get<std::array<std::size_t, 2>>();
        bundle.size = Size{size[0], size[1]};
    }
}

void read_head(const json& head, const path& file) {
    const auto kind = head.value("kind", "baked");
    if (kind != "baked") {
        fail(file, "has a head of kind \"" + kind + "\": bundles that take any labels or taught heads are for Python alone. Export with --head-mode baked");
    }
}

void read_confidence(Bundle& bundle, const json& confidence, const path& file) {
    bundle.temperature = confidence.value("temperature", 1.0);
    if (!(bundle.temperature > 0) || !std::isfinite(bundle.temperature)) {
        fail(file, "has no temperature above 0: export again");
    }
    if (confidence.contains("unknown") && !confidence["unknown"].is_null()) {
        bundle.unknown_below = confidence["unknown"].at("threshold").get<double>();
    }
}

bool may_overflow(const json& manifest) {
    const auto precision = manifest.value("precision", std::string("fp32"));
    if (precision.rfind("int8", 0) != 0 || precision == "int8-weights") {
        return false;
    }
    const auto graph = manifest.value("graph", json::object());
    return !graph.value("precision", json::object()).value("pair_safe", false);
}

Bundle read_manifest(const path& directory, const path& file, const json& manifest) {
    Bundle bundle{};
    read_input(bundle, manifest.value("input", json()), file);
    read_head(manifest.at("head"), file);
    read_confidence(bundle, manifest.value("confidence", json::object()), file);
    bundle.labels = manifest.at("labels").get<std::vector<std::string>>();
    bundle.parity_failed = manifest.at("parity") == "failed";
    bundle.may_overflow = may_overflow(manifest);
    const auto& files = manifest.at("files");
    for (const char* name : {"model.onnx", "model.onnx.data", "model.ort.onnx"}) {
        if (files.contains(name)) {
            check_file(directory / name, files[name]);
        }
    }
    // The second is made for ONNX Runtime on a CPU, over the weights of the first: the runtime takes it too.
    bundle.model = directory / (files.contains("model.ort.onnx") ? "model.ort.onnx" : "model.onnx");
    return bundle;
}

}  // namespace

std::vector<unsigned char> read_file(const path& file) {
    std::error_code error;
    const auto size = std::filesystem::file_size(file, error);
    std::ifstream stream(file, std::ios::binary);
    if (error || !stream) {
        fail(file, "cannot be read: is it there, and a file?");
    }
    std::vector<unsigned char> content(static_cast<std::size_t>(size));
    stream.read(reinterpret_cast<char*>(content.data()), static_cast<std::streamsize>(content.size()));
    if (!stream) {
        fail(file, "cannot be read to its end");
    }
    return content;
}

Bundle read_bundle(const path& directory) {
    const path file = directory / "manifest.json";
    const auto content = read_file(file);
    const auto manifest = json::parse(content.begin(), content.end(), nullptr, false);
    if (!manifest.is_object() || !manifest.contains("schema_version") || !manifest["schema_version"].is_number_integer()) {
        fail(file, "is not a Calipso manifest: it has no schema_version");
    }
    const auto version = manifest["schema_version"].get<int>();
    if (version > kSchemaVersion) {
        fail(file, "has schema version " + std::to_string(version) + "; this program reads up to " + std::to_string(kSchemaVersion));
    }
    try {
        return read_manifest(directory, file, manifest);
    } catch (const json::exception& error) {
        fail(file, std::string("does not follow the manifest's schema: ") + error.what());
    }
}
