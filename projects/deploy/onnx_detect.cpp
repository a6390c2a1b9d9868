// Detect with an exported ONNX file in C++: needs onnxruntime's headers and library, and nothing else.
//
//   g++ -std=c++17 -O2 onnx_detect.cpp -I ORT/include -L ORT/lib -lonnxruntime -o onnx_detect
//   LD_LIBRARY_PATH=ORT/lib ./onnx_detect detector.onnx image.ppm 0.4
//
// ORT is onnxruntime's folder, unpacked. The image is a binary PPM, which needs no library to read; in a program of your
// own it comes from OpenCV or a camera. A line is printed for each detection, best first: class, score, and the left, top,
// right and bottom side in px. Exit codes: 0 done, 1 a file cannot be used, 2 wrong usage.

#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

struct Image {
  int64_t width = 0, height = 0;
  std::vector<uint8_t> rgb;  // row by row, the three channels of a pixel beside each other
};

Image read_ppm(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string kind;
  Image image;
  int64_t most = 0;
  file >> kind >> image.width >> image.height >> most;
  file.get();  // one white space, then the pixels
  if (!file || kind != "P6" || most != 255 || image.width < 1 || image.height < 1 || image.width > 20000 ||
      image.height > 20000)
    throw std::runtime_error(path + " is no binary PPM with 8 bits a channel");
  image.rgb.resize(3 * image.width * image.height);
  if (!file.read(reinterpret_cast<char*>(image.rgb.data()), static_cast<std::streamsize>(image.rgb.size())))
    throw std::runtime_error(path + " is cut off");
  return image;
}

// A value of the file's metadata: JSON.
std::string metadata(const Ort::Session& session, const char* key) {
  Ort::AllocatorWithDefaultOptions allocator;
  const auto text = session.GetModelMetadata().LookupCustomMetadataMapAllocated(key, allocator);
  if (!text) throw std::runtime_error(std::string("the model has no metadata ") + key + "; export it with d2_ext");
  return text.get();
}

// The texts of a JSON list such as ["car", "van"]; names of classes have no escapes but those of quotes and backslashes.
std::vector<std::string> strings(const std::string& json) {
  std::vector<std::string> found;
  bool inside = false;
  for (size_t i = 0; i < json.size(); ++i) {
    if (json[i] == '"') {
      inside = !inside;
      if (inside) found.emplace_back();
    } else if (inside) {
      if (json[i] == '\\' && i + 1 < json.size()) ++i;
      found.back() += json[i];
    }
  }
  return found;
}

int detect(const std::string& model, const std::string& image_path, float threshold) {
  Ort::Env environment(ORT_LOGGING_LEVEL_ERROR, "onnx_detect");
  Ort::SessionOptions options;
#ifdef _WIN32
  Ort::Session session(environment, std::wstring(model.begin(), model.end()).c_str(), options);
#else
  Ort::Session session(environment, model.c_str(), options);
#endif
  const std::vector<std::string> names = strings(metadata(session, "class_names"));
  const bool is_rgb = metadata(session, "input_format") == "\"RGB\"";
  if (metadata(session, "input_dtype") != "\"uint8\"") throw std::runtime_error("export it with --input-dtype uint8");

  const Image image = read_ppm(image_path);
  const int64_t wanted = std::stoll(metadata(session, "min_size"));
  if (wanted != 0 && wanted != std::min(image.width, image.height))
    std::fprintf(stderr, "the detector was tested with a shorter side of %lld px: resize the image for the same scores\n",
                 static_cast<long long>(wanted));

  // (height, width, channel) to (1, channel, height, width), in the order of channels that the model was trained with.
  std::vector<uint8_t> pixels(image.rgb.size());
  const size_t area = image.width * image.height;
  for (size_t i = 0; i < area; ++i)
    for (size_t c = 0; c < 3; ++c) pixels[c * area + i] = image.rgb[3 * i + (is_rgb ? c : 2 - c)];

  const std::array<int64_t, 4> shape{1, 3, image.height, image.width};
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  const Ort::Value input =
      Ort::Value::CreateTensor<uint8_t>(memory, pixels.data(), pixels.size(), shape.data(), shape.size());
  const std::array<const char*, 1> inputs{"images"};
  const std::array<const char*, 3> outputs{"boxes", "scores", "classes"};
  const auto found = session.Run(Ort::RunOptions{nullptr}, inputs.data(), &input, 1, outputs.data(), outputs.size());

  const size_t count = found[1].GetTensorTypeAndShapeInfo().GetElementCount();
  const float* boxes = found[0].GetTensorData<float>();
  const float* scores = found[1].GetTensorData<float>();
  const int64_t* classes = found[2].GetTensorData<int64_t>();
  for (size_t i = 0; i < count; ++i)
    if (scores[i] >= threshold)
      std::printf("%s\t%.3f\t%.1f\t%.1f\t%.1f\t%.1f\n", names.at(classes[i]).c_str(), scores[i], boxes[4 * i],
                  boxes[4 * i + 1], boxes[4 * i + 2], boxes[4 * i + 3]);
  return 0;
}

int main(int argc, char** argv) {
  if (argc < 3 || argc > 4) {
    std::fprintf(stderr, "usage: onnx_detect DETECTOR.onnx IMAGE.ppm [LOWEST SCORE, 0.3]\n");
    return 2;
  }
  try {
    return detect(argv[1], argv[2], argc == 4 ? std::strtof(argv[3], nullptr) : 0.3f);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "onnx_detect: %s\n", error.what());
    return 1;
  }
}
