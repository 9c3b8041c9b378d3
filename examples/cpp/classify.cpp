// calipso-pixels [--top N] [--threads N] [--times] BUNDLE PICTURE...: a JSON line per picture, as `calipso classify --json`.
//
//     BUNDLE   a directory that `calipso export --pixels` wrote
//     PICTURE  JPEG or PNG
//     --times  adds decode_ms and run_ms to each line
//
// A picture that cannot be answered is told on stderr; the others are answered, and the exit code is 1.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>
#include <onnxruntime_cxx_api.h>

#include "bundle.hpp"
#include "pictures.hpp"

namespace {

using Clock = std::chrono::steady_clock;
using json = nlohmann::ordered_json;

constexpr int kFailed = 1;
constexpr int kBadUsage = 2;
constexpr unsigned char kOpaque = 255;

struct Request {
    std::size_t top = 5;
    int threads = 0;  // as ONNX Runtime finds right
    bool times = false;
    std::filesystem::path bundle;
    std::vector<std::string> pictures;
};

class UsageError : public std::runtime_error {
    using std::runtime_error::runtime_error;
};

class Classifier {
public:
    Classifier(const std::filesystem::path& directory, int threads)
        : bundle_(read_bundle(directory)), environment_(ORT_LOGGING_LEVEL_ERROR, "calipso"), session_(nullptr) {
        Ort::SessionOptions options;
        if (threads > 0) {
            options.SetIntraOpNumThreads(threads);
        }
        if (bundle_.may_overflow) {
            // Makes int8 weights uint8 on x86, whose products are exact on every CPU, and slower.
            options.AddConfigEntry("session.x64quantprecision", "1");
        }
        try {
            session_ = Ort::Session(environment_, bundle_.model.c_str(), options);
        } catch (const Ort::Exception& error) {
            throw std::runtime_error(bundle_.model.string() + " cannot be loaded: " + error.what());
        }
    }

    const Bundle& bundle() const { return bundle_; }

    // One logit per label.
    std::vector<float> logits(const Picture& picture) {
        if (bundle_.size && (bundle_.size->height != picture.height || bundle_.size->width != picture.width)) {
            throw std::runtime_error(
                "is " + std::to_string(picture.width) + " x " + std::to_string(picture.height) + ": this graph takes pictures of " +
                std::to_string(bundle_.size->width) + " x " + std::to_string(bundle_.size->height) + " alone");
        }
        auto pixels = ordered(picture);
        const std::vector<std::int64_t> shape = {
            1, static_cast<std::int64_t>(picture.height), static_cast<std::int64_t>(picture.width),
            static_cast<std::int64_t>(bundle_.channels.size())};
        const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
        const auto input = Ort::Value::CreateTensor<std::uint8_t>(memory, pixels.data(), pixels.size(), shape.data(), shape.size());
        const char* const inputs[] = {"pixels"};
        const char* const outputs[] = {"logits"};
        const auto answers = session_.Run(Ort::RunOptions{nullptr}, inputs, &input, 1, outputs, 1);
        const auto info = answers.front().GetTensorTypeAndShapeInfo();
        if (info.GetElementType() != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT || info.GetElementCount() != bundle_.labels.size()) {
            throw std::runtime_error(
                "was answered with " + std::to_string(info.GetElementCount()) + " values, expected float32 of " +
                std::to_string(bundle_.labels.size()) + " labels: export with --io-dtype fp32");
        }
        const auto* values = answers.front().GetTensorData<float>();
        return {values, values + bundle_.labels.size()};
    }

private:
    std::vector<std::uint8_t> ordered(const Picture& picture) const {
        const std::size_t count = picture.height * picture.width;
        std::vector<std::uint8_t> pixels;
        pixels.reserve(count * bundle_.channels.size());
        for (std::size_t place = 0; place < count; ++place) {
            for (const auto channel : bundle_.channels) {
                pixels.push_back(channel == 3 ? kOpaque : picture.values[3 * place + channel]);
            }
        }
        return pixels;
    }

    Bundle bundle_;
    Ort::Env environment_;
    Ort::Session session_;
};

// The best classes first; equal logits in the order of the labels. Softmax in double, as in Python.
json ranked(const std::vector<float>& logits, const Bundle& bundle, std::size_t top) {
    if (!std::all_of(logits.begin(), logits.end(), [](float value) { return std::isfinite(value); })) {
        throw std::runtime_error("was answered with logits that are not finite: the graph overflows there");
    }
    std::vector<std::size_t> order(logits.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return logits[a] > logits[b]; });
    const auto raised = [&](std::size_t place) {
        return std::exp((static_cast<double>(logits[place]) - static_cast<double>(logits[order.front()])) / bundle.temperature);
    };
    const double sum = std::accumulate(order.begin(), order.end(), 0.0, [&](double total, std::size_t place) { return total + raised(place); });
    json answer;
    if (bundle.unknown_below) {
        answer["unknown"] = raised(order.front()) / sum < *bundle.unknown_below;
    }
    answer["predictions"] = json::array();
    for (std::size_t place = 0; place < std::min(top, order.size()); ++place) {
        const auto best = order[place];
        answer["predictions"].push_back(
            {{"label", bundle.labels[best]}, {"probability", raised(best) / sum}, {"logit", static_cast<double>(logits[best])}});
    }
    return answer;
}

double milliseconds(Clock::time_point start, Clock::time_point end) {
    return std::chrono::duration<double, std::milli>(end - start).count();
}

json answered(Classifier& classifier, const std::string& path, const Request& request) {
    const auto start = Clock::now();
    const auto picture = read_picture(path);
    const auto decoded = Clock::now();
    json line = {{"image", path}};
    try {
        const auto logits = classifier.logits(picture);
        const auto ran = Clock::now();
        line.update(ranked(logits, classifier.bundle(), request.top));
        if (request.times) {
            line["times"] = {{"decode_ms", milliseconds(start, decoded)}, {"run_ms", milliseconds(decoded, ran)}};
        }
    } catch (const std::runtime_error& error) {
        throw std::runtime_error(path + " " + error.what());
    } catch (const Ort::Exception& error) {
        throw std::runtime_error(path + " cannot be computed: " + error.what());
    }
    return line;
}

int classify(const Request& request) {
    Classifier classifier(request.bundle, request.threads);
    if (classifier.bundle().parity_failed) {
        std::fprintf(stderr, "warning: this bundle's parity gate failed: its answers may differ from the model's\n");
    }
    std::size_t failed = 0;
    for (const auto& path : request.pictures) {
        try {
            const auto line = answered(classifier, path, request).dump(-1, ' ', true, json::error_handler_t::replace);
            std::printf("%s\n", line.c_str());
        } catch (const std::exception& error) {
            ++failed;
            std::fprintf(stderr, "error: %s\n", error.what());
        }
    }
    if (failed > 0) {
        std::fprintf(stderr, "error: %zu of %zu pictures could not be answered\n", failed, request.pictures.size());
    }
    return failed == 0 && std::fflush(stdout) == 0 ? 0 : kFailed;
}

int positive(const std::string& option, const std::string& text) {
    try {
        std::size_t used = 0;
        const int value = std::stoi(text, &used);
        if (used == text.size() && value > 0) {
            return value;
        }
    } catch (const std::logic_error&) {
    }
    throw UsageError(option + " is '" + text + "': expected a number above 0");
}

Request parsed(const std::vector<std::string>& arguments) {
    Request request;
    std::vector<std::string> rest;
    for (std::size_t place = 0; place < arguments.size(); ++place) {
        const auto& argument = arguments[place];
        if (argument == "--times") {
            request.times = true;
        } else if (argument == "--top" || argument == "--threads") {
            const int value = positive(argument, ++place < arguments.size() ? arguments[place] : "");
            if (argument == "--top") {
                request.top = static_cast<std::size_t>(value);
            } else {
                request.threads = value;
            }
        } else {
            rest.push_back(argument);
        }
    }
    if (rest.size() < 2) {
        throw UsageError("usage: calipso-pixels [--top N] [--threads N] [--times] BUNDLE PICTURE...");
    }
    request.bundle = rest.front();
    request.pictures.assign(rest.begin() + 1, rest.end());
    return request;
}

}  // namespace

int main(int count, char** arguments) {
    try {
        return classify(parsed({arguments + 1, arguments + count}));
    } catch (const UsageError& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return kBadUsage;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return kFailed;
    }
}
