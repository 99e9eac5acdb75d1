// Images as binary PPM (P6) and PGM (P5) files, which need no library.

#pragma once

#include <cctype>
#include <cstdint>
#include <fstream>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

struct Image {
  std::int64_t height, width, channels;
  std::vector<std::uint8_t> pixels;  // [height, width, channels]
};

// The next number of a header, past white space and comments.
inline std::int64_t read_number(std::istream& file) {
  while (std::isspace(file.peek()) || file.peek() == '#') {
    if (file.get() == '#') {
      file.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
    }
  }
  std::int64_t number = 0;
  file >> number;
  return number;
}

// Reads RGB (P6, 3 channels) or grey values (P5, 1 channel) of 8 bits.
inline Image read_netpbm(const std::string& path, std::int64_t channels) {
  std::ifstream file(path, std::ios::binary);
  const std::string wanted = channels == 3 ? "P6" : "P5";
  std::string magic(2, ' ');
  file.read(magic.data(), 2);
  Image image{0, 0, channels, {}};
  image.width = read_number(file);
  image.height = read_number(file);
  const std::int64_t white = read_number(file);
  file.get();  // the white space that ends the header
  if (!file || magic != wanted || white != 255 || image.width < 1 || image.height < 1 ||
      image.width > 65535 || image.height > 65535) {
    throw std::runtime_error(path + " is not a file of type " + wanted + " with 8 bits");
  }
  image.pixels.resize(image.height * image.width * channels);
  file.read(reinterpret_cast<char*>(image.pixels.data()), std::streamsize(image.pixels.size()));
  if (!file) {
    throw std::runtime_error(path + " ends too early");
  }
  return image;
}

// Reads a photograph and its mask, which have the same size.
inline void read_support(const std::string& photograph, const std::string& annotation, Image& image,
                         Image& mask) {
  image = read_netpbm(photograph, 3);
  mask = read_netpbm(annotation, 1);
  if (image.height != mask.height || image.width != mask.width) {
    throw std::runtime_error(annotation + " has another size than " + photograph);
  }
}

// Writes the pixels of an object in white. A class whose score is below 0.1 is not found.
inline void write_mask(const std::string& path, const float* probability, std::int64_t height,
                       std::int64_t width, float threshold, float score) {
  std::ofstream file(path, std::ios::binary);
  file << "P5\n" << width << " " << height << "\n255\n";
  for (std::int64_t i = 0; i < height * width; ++i) {
    file.put(score >= 0.1F && probability[i] >= threshold ? char(255) : char(0));
  }
  if (!file.flush()) {
    throw std::runtime_error(path + " cannot be written");
  }
}
